"""What the bodies of ops are written over."""
