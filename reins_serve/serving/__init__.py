"""The Ray Serve application: a gateway that speaks HTTP, and one deployment per model."""
