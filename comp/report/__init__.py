"""Tables, figures, sheets of images."""
