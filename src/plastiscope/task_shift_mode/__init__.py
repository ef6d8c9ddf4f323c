"""Config group `task_shift_mode`: how the data change from task to task."""
