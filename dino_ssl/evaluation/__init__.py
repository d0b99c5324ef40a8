"""What is done to frozen features: no paths, no flags, no data set names."""
