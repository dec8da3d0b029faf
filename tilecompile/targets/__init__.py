"""What knows a chip."""
