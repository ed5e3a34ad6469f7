"""The napari plugin: a session's words and marks in a window that never waits for the model."""
