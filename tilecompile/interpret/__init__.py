"""An engine executed without its kernel."""
