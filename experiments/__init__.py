"""One program per table or figure; README.md says which command makes which."""
