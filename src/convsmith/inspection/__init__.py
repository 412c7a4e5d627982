"""What every pillar needs to know about a network: its layers, its features, its outputs, its operations."""
