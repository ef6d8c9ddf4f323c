"""Config group `net`, and the unit description that learners and analyses read."""
