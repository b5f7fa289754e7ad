"""A trained model taken out of its run folder, with a card that says how to use it without fedsim."""
