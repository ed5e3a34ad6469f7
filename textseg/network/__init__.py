"""The network: image encoder, text fusion, mask decoder, and its weights on disk."""
