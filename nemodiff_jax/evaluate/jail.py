"""Runs one Python program where it can do no harm. A script, by `sandbox.py`.

    python -I -S jail.py '{"program": ..., "root": ..., "isolated": true, ...}'

The program gets namespaces of its own (users, mounts, processes, network, IPC):
it sees Python and the system's libraries, read only, and one small folder in
memory; no network; no process but its own. Its resources are limited. The exit
code is the program's; 97 if the namespaces cannot be had.
"""

import ctypes
import json
import os
import platform
import resource
import signal
import sys
import traceback

NO_JAIL = 97
NOBODY = 65534
WORK = "/nemodiff-work"  # The program's folder; Python does not lie there.
_CLONE = {"ns": 0x20000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000,
          "pid": 0x20000000, "net": 0x40000000}  # fmt: skip
_RDONLY, _NOSUID, _NODEV, _BIND, _REC = 1, 2, 4, 4096, 16384
_PRIVATE, _DETACH = 1 << 18, 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR, _AT_RECURSIVE = 442, 0x8000
_PDEATHSIG, _NO_NEW_PRIVS, _CAPBSET_DROP, _CAPS = 1, 38, 24, 64
_DEVICES = ("null", "zero", "urandom")


def main() -> int:
  """Runs the program that the first argument describes."""
  spec = json.loads(sys.argv[1])
  if not spec["isolated"]:
    return _wait(_fork(lambda: _program(spec, spec["folder"])))
  ready, mapped = os.pipe(), os.pipe()
  child = _fork(lambda: _isolate(spec, ready, mapped))
  os.close(ready[1])
  if os.read(ready[0], 1):
    _map_users(child)
  os.close(mapped[1])
  return _wait(child)


def _isolate(spec, ready, mapped) -> int:
  """Enters the namespaces; their first process then starts the program."""
  os.close(ready[0])
  os.close(mapped[1])
  _prctl(_PDEATHSIG, signal.SIGKILL)
  _call("unshare", _libc.unshare(sum(_CLONE.values())))
  os.write(ready[1], b"1")
  os.read(mapped[0], 1)  # Ends when the ids are mapped.
  return _wait(_fork(lambda: _first(spec)))


def _first(spec) -> int:
  _prctl(_PDEATHSIG, signal.SIGKILL)
  with open("/proc/sys/user/max_user_namespaces", "w") as file:
    file.write("0")  # The program makes no namespaces of its own.
  _build(spec)
  return _wait(_fork(lambda: _program(spec, WORK)))


def _map_users(child: int) -> None:
  """Whoever runs this is root inside; as root, the program is nobody."""
  uid, gid = os.geteuid(), os.getegid()
  with open(f"/proc/{child}/setgroups", "w") as file:
    file.write("deny")
  for name, own in (("uid_map", uid), ("gid_map", gid)):
    lines = f"0 {own} 1\n"
    if uid == 0:
      lines += f"{NOBODY} {NOBODY} 1\n"
    with open(f"/proc/{child}/{name}", "w") as file:
      file.write(lines)


def _build(spec) -> None:
  """A root of its own: system folders read only, and WORK in memory."""
  root = spec["root"]
  with open(spec["program"], "rb") as file:
    source = file.read()
  _mount(None, "/", None, _REC | _PRIVATE)
  _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
  for path in spec["shown"]:
    target = root + path
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
      os.symlink(os.readlink(path), target)
    elif os.path.isdir(path):
      os.makedirs(target, exist_ok=True)
      _mount(path, target, None, _BIND | _REC)
      _restrict(target, _RDONLY | _NOSUID | _NODEV, _AT_RECURSIVE)
  os.makedirs(root + "/dev", exist_ok=True)
  for name in _DEVICES:
    open(f"{root}/dev/{name}", "w").close()
    _mount(f"/dev/{name}", f"{root}/dev/{name}", None, _BIND)
  work = root + WORK
  os.makedirs(work)
  room = f"size={spec['disk']},nr_inodes=1000,mode=777"
  _mount("tmpfs", work, "tmpfs", _NOSUID | _NODEV, room)
  if not os.path.lexists(root + "/tmp"):  # Python may lie beneath it.
    os.symlink(WORK, root + "/tmp")
  with open(work + "/program.py", "wb") as file:
    file.write(source)
  os.makedirs(root + "/old")
  names = os.fsencode(root), os.fsencode(root + "/old")
  number = _PIVOT_ROOT[platform.machine()]
  _call("pivot_root", _libc.syscall(number, *names))
  os.chdir("/")
  _call("umount2", _libc.umount2(b"/old", _DETACH))
  _restrict("/", _RDONLY, 0)


def _program(spec, folder: str) -> int:
  """Gives up what is left of its rights, and becomes the program."""
  os.chdir(folder)
  if spec["isolated"]:
    for cap in range(_CAPS):
      _libc.prctl(_CAPBSET_DROP, cap, 0, 0, 0)  # Not all of them exist.
    if spec["root_user"]:
      os.setresgid(NOBODY, NOBODY, NOBODY)
      os.setresuid(NOBODY, NOBODY, NOBODY)
  _prctl(_NO_NEW_PRIVS, 1)
  for name, most in spec["limits"].items():
    resource.setrlimit(getattr(resource, name), (most, most))
  os.execve(spec["python"], [spec["python"], "-I", "-B", "program.py"], {
    "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": folder, "TMPDIR": folder
  })  # fmt: skip


def _fork(body) -> int:
  """The id of a new process that runs `body` and ends."""
  child = os.fork()
  if child:
    return child
  code = NO_JAIL
  try:
    code = body()
  except BaseException:
    traceback.print_exc()
  sys.stderr.flush()
  os._exit(code)


def _wait(child: int) -> int:
  code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  return code if code >= 0 else 128 - code


def _mount(source, target, kind, flags, data=None) -> None:
  encode = lambda x: None if x is None else os.fsencode(x)
  code = _libc.mount(
    encode(source), encode(target), encode(kind), flags, encode(data)
  )
  _call(f"mount on {target}", code)


def _restrict(path: str, attributes: int, flags: int) -> None:
  """Sets attributes of a mount, and of what is mounted beneath it."""
  struct = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
  code = _libc.syscall(
    _MOUNT_SETATTR, -100, os.fsencode(path), flags, struct, 32
  )
  _call(f"mount_setattr on {path}", code)


def _prctl(option: int, value: int) -> None:
  _call("prctl", _libc.prctl(option, value, 0, 0, 0))


def _call(name: str, code: int) -> None:
  if code:
    number = ctypes.get_errno()
    raise OSError(number, f"{name}: {os.strerror(number)}")


if __name__ == "__main__":
  _libc = ctypes.CDLL(None, use_errno=True)
  sys.exit(main())
