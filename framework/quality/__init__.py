"""What a cache policy costs in quality: tasks, the models they are judged on, and the measures."""
