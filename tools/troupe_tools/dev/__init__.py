"""What only developers of Troupe call: pictures and tables of the documentation, the templates' layout, training."""
