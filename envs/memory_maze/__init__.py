"""Memory Maze: the published package's tasks, compiled, stepped and drawn by us, with the same frames, rewards and poses.

`upstream.py` builds a task with the package; `maze.py` makes a model of it that is quick to open, step and draw; `gl.py` finds a
renderer; `env.py` and `vector_env.py` are the Gymnasium shells.
"""
