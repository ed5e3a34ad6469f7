"""Words to vectors: the text tower, its vocabulary, the interface of all encoders, and the disk cache."""
