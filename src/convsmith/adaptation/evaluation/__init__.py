"""What is measured of an adapted network, with and without labels."""
