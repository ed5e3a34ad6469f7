"""Results for people to look at: previews of masks on their scan."""
