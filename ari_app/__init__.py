"""trunkbridge's control plane: call lifecycle over ARI, placement, trunks, records, and the command line."""
