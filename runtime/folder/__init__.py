"""An engine folder as it is read: files, manifest, tables, and what is checked of them."""
