"""Full-catalogue ranks and the metrics computed from them."""
