"""Encoders of pictures, and the host-side preprocessing that feeds them."""
