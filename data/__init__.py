"""Driving data: labels, video, frames on disk, tokens on disk."""
