"""Take a trained PyTorch model to a device and prove that it arrived."""
