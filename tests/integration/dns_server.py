"""A small DNS server, for tests of peers behind names: gRPC targets dns://SERVER/NAME:PORT."""
import socket
import struct
import threading

TYPE_A, CLASS_IN = 1, 1


class DnsServer:
    """Answers A questions from `names`: name -> list of addresses; everything else is empty."""

    def __init__(self):
        self.names = {}
        self.asked = 0
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.address = "%s:%d" % self.socket.getsockname()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        while True:
            try:
                question, sender = self.socket.recvfrom(4096)
            except OSError:
                return
            self.asked += 1
            self.socket.sendto(self.answer(question), sender)

    def answer(self, message):
        end, labels = 12, []
        while message[end]:
            labels.append(message[end + 1:end + 1 + message[end]].decode())
            end += 1 + message[end]
        kind, = struct.unpack(">H", message[end + 1:end + 3])
        addresses = self.names.get(".".join(labels).lower(), []) if kind == TYPE_A else []
        # A response, recursion available; one question, and no name longer valid than it is read.
        header = message[:2] + struct.pack(">HHHHH", 0x8180, 1, len(addresses), 0, 0)
        records = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", TYPE_A, CLASS_IN, 0, 4)
                           + socket.inet_aton(address) for address in addresses)
        return header + message[12:end + 5] + records

    def close(self):
        self.socket.close()


def free_port_on_all(addresses):
    """A port that is free on each of the addresses: a name has one port, whatever it points to."""
    while True:
        with socket.create_server((addresses[0], 0)) as first:
            port = first.getsockname()[1]
            try:
                for address in addresses[1:]:
                    socket.create_server((address, port)).close()
            except OSError:
                continue
        return port
