"""Tables, figures, sheets of images, and the HTML page."""
