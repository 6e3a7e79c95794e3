"""What people run. An app imports only the public `sdk`."""
