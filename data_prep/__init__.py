"""Scripts that turn raw files into TFRecord folders. Nothing here is imported by training."""
