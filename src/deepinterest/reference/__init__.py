"""The published TensorFlow graph beside these networks: its weights by name, and its golden numbers."""
