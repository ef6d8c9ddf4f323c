"""Config group `learner`: update rules."""
