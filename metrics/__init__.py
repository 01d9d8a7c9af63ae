"""What is measured on images and codes: distances of features, likeness of images, codebook statistics."""
