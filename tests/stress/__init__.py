"""The reliability campaign, `make stress`: kills, full disks, flipped bits, two of anything at once, and hostile input."""
