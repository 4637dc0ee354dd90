"""From a segmentation competition's data to an accepted submission."""
