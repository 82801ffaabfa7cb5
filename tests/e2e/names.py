"""A name server that knows no name, and prints each that it is asked for: who looks one up wants to call somebody.

test_calls_nobody.py runs this text in a container. Argument: the address to listen at.
"""

import socket
import sys

NO_SUCH_NAME = b"\x81\x83"  # an answer, recursion was possible, and there is no such name

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind((sys.argv[1], 53))
    print("listening", flush=True)
    while True:
        asked, sender = server.recvfrom(1500)
        labels, at = [], 12
        while asked[at]:
            labels.append(asked[at + 1 : at + 1 + asked[at]].decode("ascii", "replace").lower())
            at += 1 + asked[at]
        print(".".join(labels), flush=True)
        question = asked[12 : at + 5]  # the name's end, its type and its class; what else came is left out
        server.sendto(asked[:2] + NO_SUCH_NAME + b"\0\1" + b"\0" * 6 + question, sender)
