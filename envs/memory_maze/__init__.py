"""Memory Maze: the tasks of the published package (upstream) on our own faster simulation, with equal frames, rewards and poses.

`upstream.py` builds a task with the package. `maze.py` simulates it and `renderer.py` renders it. `gl.py` chooses an OpenGL
implementation. `env.py` and `vector_env.py` are the Gymnasium envs.
"""
