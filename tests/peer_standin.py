"""A stand-in for an engine's process (envs/minecraft/process.py): says hello, and then misbehaves as it is told.

python peer_standin.py SOCKET FRAMES [how to begin]
"""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time


def main(path: str, frames: str, begin: str = "well") -> None:
    print("standing in", flush=True)
    if begin == "die":
        print("no display", flush=True)
        sys.exit(3)
    if begin == "hang":
        time.sleep(1000)
    line = socket.socket(socket.AF_UNIX)
    line.connect(path)
    if begin == "refuse":
        say(line, {"error": "no WebGL"})
    say(line, {"hello": 1})
    while True:
        head = line.recv(4, socket.MSG_WAITALL)
        if len(head) < 4:
            return
        answer(line, frames, json.loads(line.recv(struct.unpack("<I", head)[0], socket.MSG_WAITALL)))


def answer(line: socket.socket, frames: str, request: dict) -> None:
    op = request["op"]
    if op == "close":
        sys.exit(0)
    if op == "hang":
        time.sleep(1000)
    if op == "hang deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)
    if op == "die":
        print("a last word", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if op == "no memory":
        print("FATAL ERROR: JavaScript heap out of memory", flush=True)
        os.abort()
    if op == "cut":
        line.sendall(struct.pack("<I", 100) + b'{"half')
        line.close()
        time.sleep(1000)
    if op == "child":
        child = subprocess.Popen(["sleep", "1000"])
        return say(line, {"pid": child.pid})
    if op == "refuse":
        return say(line, {"refused": "there is a block"})
    if op == "fail":
        return say(line, {"error": "a fault of mine"})
    if op == "draw":
        with open(frames, "r+b") as file:
            file.write(bytes(request["picture"]))
    say(line, {"echo": request, **({"bytes": 3} if op == "bytes" else {})})
    if op == "bytes":
        line.sendall(b"abc")


def say(line: socket.socket, message: dict) -> None:
    text = json.dumps(message).encode()
    line.sendall(struct.pack("<I", len(text)) + text)


if __name__ == "__main__":
    main(*sys.argv[1:])
