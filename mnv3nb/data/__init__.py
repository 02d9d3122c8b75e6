"""Images and labels: batches, named data sets, folders of photos."""
