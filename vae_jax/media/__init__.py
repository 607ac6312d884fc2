"""What people look at: picture sheets and animations, figures, the page of a run. Data in, bytes out; nothing here knows a model."""
