"""What is measured on images and codes: Fréchet distances, image similarity, codebook statistics."""
