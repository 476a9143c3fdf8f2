"""Stands for Jenkins' agent.jar, of which it is the program: `python3 agent.jar -url ROOT -secret @FILE -name N -webSocket -workDir D`.

It shakes hands as an inbound agent does, stays until SIGTERM, and runs nothing. It needs Python's own library alone.
"""

import hashlib
import os
import re
import signal
import socket
import struct
import sys
import time

VERSION = "@VERSION@"
# Whether the launcher knows -url, -name and -webSocket.
KNOWS_URL = "@KNOWS_URL@" == "yes"
# How long a JVM takes until it connects.
START_SECONDS = float("@START_SECONDS@")
# The pause before it looks whether the controller is back, and between two looks.
PAUSE_SECONDS = float("@PAUSE_SECONDS@")
CAPABILITY = "rO0ABXNyABpodWRzb24ucmVtb3RpbmcuQ2FwYWJpbGl0eQAAAAAAAAABAgABSgAEbWFza3hwAAAAAAAAAf4="

connection = None


def say(text):
    sys.stderr.write(f"INFO: {text}\n")
    sys.stderr.flush()


def fail(text):
    """What every failure of the first connect is."""
    say(text)
    os._exit(255)


def usage(problem):
    sys.stderr.write(f'{problem}\njava -jar agent.jar [options...]\n')
    os._exit(0)


def parse(arguments):
    """The options of the launcher, or of hudson.remoting.jnlp.Main."""
    options = {"headers": []}
    main = arguments[:1] == ["hudson.remoting.jnlp.Main"]
    rest, free = list(arguments[1:] if main else arguments), []
    takes = {"-secret", "-workDir", "-internalDir", "-jnlpUrl", "-jnlpCredentials", "-tunnel"}
    flags = {"-noReconnect", "-failIfWorkDirIsMissing", "-noKeepAlive", "-headless"}
    if KNOWS_URL or main:
        takes |= {"-url", "-name", "-webSocketHeader"}
        flags |= {"-webSocket"}
    while rest:
        option = rest.pop(0)
        if option == "-version":
            print(VERSION)
            os._exit(0)
        if option in flags:
            options[option] = True
        elif option in takes and rest:
            value = rest.pop(0)
            if option == "-webSocketHeader":
                options["headers"].append(value.split("=", 1))
            options[option] = value
        elif main and not option.startswith("-"):
            free.append(option)
        else:
            usage(f'"{option}" is not a valid option')
    if main and len(free) == 2:
        options["-secret"], options["-name"] = free
    return options


def read_secret(options):
    secret = options.get("-secret", "")
    if secret.startswith("@"):
        try:
            with open(secret[1:], encoding="utf-8") as file:
                secret = file.read()
        except OSError as error:
            fail(f"java.io.FileNotFoundException: {error}")
    return secret.strip()


def split(url):
    found = re.fullmatch(r"http://(\[[^\]]+\]|[^:/]+)(?::(\d+))?(/.*)?", url)
    if not found:
        fail(f"java.net.MalformedURLException: {url}")
    return found[1].strip("[]"), int(found[2] or 80), found[3] or "/"


def ask(url, headers, timeout):
    """Sends a GET; the socket, the status and the head of the answer, and what came after it."""
    host, port, path = split(url)
    stream = socket.create_connection((host, port), timeout)
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}:{port}"] + [f"{key}: {value}" for key, value in headers]
    stream.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace"))
    got = b""
    while b"\r\n\r\n" not in got:
        more = stream.recv(4096)
        if not more:
            raise ConnectionResetError("Connection reset")
        got += more
    head, rest = got.split(b"\r\n\r\n", 1)
    return stream, int(head.split(b" ", 2)[1]), rest


def body_of(url):
    stream, status, got = ask(url, [("Connection", "close")], 30)
    if status != 200:
        raise ConnectionError(f"Server returned HTTP response code: {status} for URL: {url}")
    while True:
        more = stream.recv(65536)
        if not more:
            return got
        got += more


def read_jnlp(options, secret):
    """Completes the options by what the controller says, once it does."""
    url = options["-jnlpUrl"]
    while True:
        try:
            hidden = body_of(url + "?encrypt=true")
            break
        except OSError as error:
            say(f"Failed to obtain {url}: {error}")
            if options.get("-noReconnect"):
                os._exit(255)
            time.sleep(PAUSE_SECONDS)
    text = b""
    for number in range((len(hidden) - 16 + 31) // 32):
        key = hashlib.sha256(secret.encode() + hidden[:16] + str(number).encode()).digest()
        text += bytes(one ^ other for one, other in zip(hidden[16 + 32 * number:], key))
    arguments = re.findall(r"<argument>([^<]*)</argument>", text.decode("utf-8", "replace"))
    if len(arguments) < 2:
        fail(f"Failed to decrypt {url}: is the secret right?")
    options["-name"] = arguments[1]
    given = parse(["hudson.remoting.jnlp.Main"] + arguments[2:])
    return {**given, **options}


def prepare(directory, options):
    if options.get("-failIfWorkDirIsMissing") and not os.path.isdir(directory):
        fail(f"The specified {directory} directory does not exist")
    internal = os.path.join(directory, options.get("-internalDir", "remoting"))
    for name in ("jarCache", "logs"):
        os.makedirs(os.path.join(internal, name), exist_ok=True)


def send_close(code):
    """A close frame, masked with zeros."""
    connection.sendall(struct.pack("!BBIH", 0x88, 0x82, 0, code))


def end(number, _frame):
    if connection is not None:
        try:
            send_close(1000)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass
    os._exit(128 + number)


class Incoming:
    """The frames of the controller."""

    def __init__(self, stream, got):
        self.stream, self.got = stream, got

    def take(self, count):
        while len(self.got) < count:
            more = self.stream.recv(65536)
            if not more:
                raise ConnectionResetError("Connection reset")
            self.got += more
        taken, self.got = self.got[:count], self.got[count:]
        return taken

    def frame(self):
        first, second = self.take(2)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", self.take(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self.take(8))
        return first & 0x0F, self.take(length)


def stay(incoming):
    """Answers pings until the link breaks."""
    try:
        while True:
            kind, content = incoming.frame()
            if kind == 0x8:
                send_close(1000)
                return
            if kind == 0x9:
                connection.sendall(struct.pack("!BBI", 0x8A, 0x80 | len(content), 0) + content)
    except OSError:
        return


def come_back(root):
    """Waits for the controller, and begins again as the same process."""
    time.sleep(PAUSE_SECONDS)
    while True:
        try:
            stream, status, _ = ask(root + "login", [("Connection", "close")], None)
            stream.close()
            if status != 503:
                break
            say(f"{root}login is not ready: {status}")
        except OSError as error:
            say(f"{root}login is not ready: {error}")
        time.sleep(PAUSE_SECONDS)
    say("Restarting agent")
    # As it was started: what came from a file of arguments is read from there again.
    os.execv(sys.executable, sys.orig_argv)


def main():
    global connection
    arguments = sys.argv[1:]
    options = parse(arguments)
    secret = read_secret(options)
    time.sleep(START_SECONDS)
    if "-jnlpUrl" in options:
        options = read_jnlp(options, secret)
    if "-url" not in options or "-name" not in options:
        usage("-url and -name are needed")
    root = options["-url"].rstrip("/") + "/"
    if "-workDir" in options:
        prepare(options["-workDir"], options)
    say(f"Using Remoting version: {VERSION}")
    if not options.get("-webSocket"):
        say(f"Locating server among [{root}]")
        url = root + "tcpSlaveAgentListener/"
        try:
            _, status, _ = ask(url, [("Connection", "close")], 30)
            fail(f"java.io.IOException: {url} is invalid: {status} Not Found")
        except OSError as error:
            fail(f"java.io.IOException: Failed to connect to {url}: {error}")
    headers = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", "13"),
               ("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="), ("Node-Name", options["-name"]), ("Secret-Key", secret),
               ("X-Remoting-Capability", CAPABILITY)] + options["headers"]
    try:
        stream, status, got = ask(root + "wsagents/", headers, None)
    except OSError as error:
        fail(f"java.net.ConnectException: {error}")
    if status != 101:
        fail(f"io.jenkins.remoting.shaded.DeploymentException: Handshake error. Response code was not 101: {status}.")
    connection = stream
    say("WebSocket connection open")
    say("Connected")
    stay(Incoming(stream, got))
    say("Terminated")
    connection = None
    stream.close()
    if options.get("-noReconnect"):
        os._exit(0)
    come_back(root)


signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
main()
