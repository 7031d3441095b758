"""What the tests of the front end in a browser share."""
