"""The passes that decide about devices."""
