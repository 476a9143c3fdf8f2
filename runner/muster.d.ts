// What a script can call. Put this file beside a script, and an editor knows it; nothing of it is sent to the server.
//
// The namespaces are the interfaces of the contract, `muster:provision@0.1.0`. Calls answer when they are done: there are no promises.

/** What the agent said of itself when it registered, after its claims were checked against its token. */
declare namespace registration {
  /** The agent's name, unique among the agents that live. */
  function name(): string;
  /** The label that this run provisions. */
  function label(): string;
  /** All of the agent's labels, this run's included. */
  function labels(): string[];
  /** How many builds the agent takes at once; at least 1. */
  function executors(): number;
  /** The agent's root, an absolute path. */
  function root(): string;
  /** The operating system: `linux`, `darwin`. */
  function os(): string;
  /** The machine's architecture: `x86_64`, `aarch64`. */
  function arch(): string;
  /** What the machine was made from, if it said so. */
  function image(): string | null;
  /** One of the attributes that the agent gave of itself. */
  function attribute(name: string): string | null;
  /** Which attempt this is at bringing this agent to this release; 1 the first time. */
  function attempt(): number;
}

/** The label's settings, from its policy. */
declare namespace settings {
  /** One setting; null if the policy has no such setting. */
  function get(name: string): string | null;
  /** All settings, sorted by name. */
  function all(): [name: string, value: string][];
}

/** Secrets that the policy grants. A script has the handle alone: the bytes go to the command that is given the handle. */
declare namespace secrets {
  class Secret {
    private constructor();
    /** The secret's name. */
    name(): string;
  }
  /** Opens a secret; null if the policy does not grant it or the server has none of that name. */
  function open(name: string): Secret | null;
}

/** Bundles that the policy grants, each at the version that the release pinned. */
declare namespace bits {
  class Bundle {
    private constructor();
    /** The bundle's name. */
    name(): string;
    /** The version: the sha256 of its manifest, in hexadecimal. */
    version(): string;
    /** The content of one file; null if there is none, or it is over 1 MiB. */
    read(path: string): Uint8Array | null;
  }
  /** Opens a bundle; null if the policy does not name it. */
  function open(name: string): Bundle | null;
}

/** Steps and notes in the run's log. `console.log` and the like write there too. */
declare namespace log {
  type Level = 'debug' | 'info' | 'warn' | 'error';
  /** Writes one note. */
  function write(level: Level, message: unknown): void;
  /** Names what the following calls belong to. */
  function step(title: unknown): void;
}

/**
 * The machine being provisioned. Paths are absolute, or relative to the agent's root. A call that is not done throws an `AgentError`.
 */
declare namespace agent {
  /** A program and what it is started with. Nothing here is read by a shell. */
  class Command {
    /** A program by its absolute path, and its arguments. */
    constructor(program: string, args?: string[]);
    /** Sets one variable of its environment. */
    env(name: string, value: string): void;
    /** Sets one variable to a secret. */
    secretEnv(name: string, value: secrets.Secret): void;
    /** The directory that it starts in; the agent's root unless set. */
    directory(path: string): void;
    /** What it reads on standard input: at most 1 MiB. */
    stdin(bytes: Uint8Array | string): void;
    /** After how many milliseconds it is ended with all that it started. */
    timeoutMs(limit: number): void;
  }

  /** What became of a command. */
  class Output {
    private constructor();
    /** Its exit status; 128 + N if signal N ended it. */
    status(): number;
    /** What it wrote to standard output, up to 256 KiB. `text` makes a string of it. */
    stdout(): Uint8Array;
    /** What it wrote to standard error, up to 256 KiB. */
    stderr(): Uint8Array;
    /** Whether it wrote more than was kept. */
    truncated(): boolean;
  }

  /** What a changing call changed. */
  class Change {
    private constructor();
    /** Whether anything is different now. */
    changed(): boolean;
    /** How many files were looked at. */
    files(): number;
    /** How many of them were written. */
    filesChanged(): number;
    /** How many files were removed. */
    filesRemoved(): number;
    /** The bytes of all files looked at. */
    bytes(): number;
    /** The bytes that had to be sent, before compression. */
    bytesSent(): number;
  }

  /** Runs a command that only looks. Whether it only looks is your word. */
  function probe(command: Command): Output;
  /** The content of one file of at most 1 MiB. */
  function readFile(path: string): Uint8Array;
  /** Whether there is anything at a path. */
  function exists(path: string): boolean;
  /** Runs a command and answers when it has ended. */
  function run(command: Command): Output;
  /** Makes a path a file with this content and these permission bits, 0o644 unless said. */
  function writeFile(path: string, contents: Uint8Array | string, mode?: number): Change;
  /** Removes a file, a symlink, or a directory with all that is in it. That nothing is there is no error. */
  function remove(path: string): Change;
  /** Makes the destination hold the bundle; leaves other files alone. */
  function push(bundle: bits.Bundle, destination: string): Change;
  /** Makes the destination hold the bundle, and removes what earlier pushes put there and the bundle no longer has. */
  function mirror(bundle: bits.Bundle, destination: string): Change;
  /** Ends what was launched on this agent, if it runs; answers whether it did. */
  function stop(): boolean;
  /** What to start once every module of this agent has succeeded. The last call counts. */
  function launch(command: Command): void;
}

/** Why a call was not done. */
interface AgentError extends Error {
  name: 'AgentError';
  /** Which kind it is. The message is for people. */
  tag: 'denied' | 'not-found' | 'invalid' | 'unreachable' | 'timed-out' | 'over-budget' | 'other';
}

/** Ends the run: this agent will not do for this label. Throws. */
declare function never(reason: string): never;
/** Ends the run, to be tried again, not before so many seconds. Throws. */
declare function later(reason: string, seconds: number): never;
/** Ends the run, to be tried again with growing pauses. Throws. */
declare function refuse(reason: string): never;

/** Bytes in UTF-8 as a string. */
declare function text(bytes: Uint8Array): string;
/** A string as bytes in UTF-8. */
declare function bytes(string: string): Uint8Array;

/** Writes to the run's log. */
declare const console: Record<'debug' | 'log' | 'info' | 'warn' | 'error', (...values: unknown[]) => void>;
