#!/bin/sh
# Puts Orlop on a node of a cluster, or takes it away: see the usage below, and docs/kubernetes.md.
#
# Whatever appears is made beside its place and renamed into it, and each step looks first at what is there. So a run that was killed, or that
# met a full disk, leaves the node as it was or a whole step further, and the next run goes on from there.
set -eu
umask 022
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

usage() {
  cat <<'END'
Usage: install.sh [--uninstall] [--no-restart] [--dry-run] [--root DIR]

Installs the release that it lies in: below /opt/orlop, with links in /usr/local/bin, /etc/orlop/config.toml if there is none, and the runtime
handler `orlop` in the configuration of k3s', RKE2's or the node's own containerd, which is restarted if that changed. Pods go on all the while.

  --uninstall   take all of that away, unless pods run from it
  --no-restart  leave restarting containerd to you
  --dry-run     only say what would be done
  --root DIR    take DIR for the file system's root
END
}

say() { echo "install.sh: $*"; }
die() { echo "install.sh: $*" >&2; exit 1; }
# Runs what must succeed; what it says otherwise becomes the one line that is seen.
must() {
  if [ -n "$dry" ]; then say "would run: $*"; return; fi
  said=$("$@" 2>&1) || die "cannot go on: $(printf '%s' "$said" | head -n 1)"
}
# Makes standard input the content of FILE, whole or not at all. After a change of containerd's files it must be restarted, by the next run if
# this one ends before that.
put() {
  if [ -n "$dry" ]; then cmp -s - "$1" || say "would write $1"; return; fi
  must mkdir -p "${1%/*}"
  if [ -e "$1" ]; then must cp -p "$1" "$1.orlop-new"; fi
  { cat >"$1.orlop-new"; } 2>/dev/null || { rm -f "$1.orlop-new"; die "cannot write $1: is the disk full, or read-only?"; }
  if cmp -s "$1" "$1.orlop-new"; then rm -f "$1.orlop-new"; return; fi
  if [ "$1" != "$config" ]; then restart_later; fi
  must mv -f "$1.orlop-new" "$1"
}
# Makes LINK lead to TARGET, at once.
link() {
  if [ "$(readlink "$2")" = "$1" ]; then return; fi
  must ln -sfn "$1" "$2.orlop-new"
  must mv -fT "$2.orlop-new" "$2"
}

# What runs from DIR: pods, by their names where containerd's files tell them, or else processes.
users_of() {
  # shellcheck disable=SC2012 # these names are numbers
  pids=$(ls -l /proc/[0-9]*/exe 2>/dev/null | sed -n "s|.*/proc/\([0-9]*\)/exe -> $1/.*|\1|p")
  pods=''
  for pid in $pids; do
    id=$(tr '\0' '\n' 2>/dev/null <"/proc/$pid/cmdline" | sed -n '/^-id$/{n;p;}') || continue
    if [ -z "$id" ]; then continue; fi
    for spec in "$root"/run/containerd/*.task/*/"$id"/config.json "$root"/run/k3s/containerd/*.task/*/"$id"/config.json; do
      if [ -f "$spec" ]; then id=$(annotation sandbox-namespace)/$(annotation sandbox-name); fi
    done
    pods="$pods $id"
  done
  if [ -n "$pods" ]; then echo "pods:$pods"; elif [ -n "$pids" ]; then echo "processes: $(printf '%s' "$pids" | tr '\n' ' ')"; fi
}
annotation() { sed -n "s|.*\"io.kubernetes.cri.$1\": *\"\([^\"]*\)\".*|\1|p" "$spec"; }

# What stands before the first table of a containerd's configuration; all of it without our block; and a runtime's table for a version of it.
head_of() { if [ -f "$1" ]; then sed -e '/^[[:space:]]*\[/,$d' -e 's/#.*//' "$1"; fi; }
plain() { if [ -f "$1" ]; then awk '/^# >>> orlop/ { ours = 1 } !ours { print } /^# <<< orlop/ { ours = 0 }' "$1"; fi; }
table() {
  case $format in 1) plugin=cri ;; 2) plugin='"io.containerd.grpc.v1.cri"' ;; *) plugin='"io.containerd.cri.v1.runtime"' ;; esac
  printf '[plugins.%s.containerd.runtimes.%s]\n  runtime_type = "io.containerd.%s.v2"\n' "$plugin" "$1" "$1"
}
handler() {
  table orlop
  echo '  pod_annotations = ["orlop.dev/*"]'
}
with_block() {
  plain "$file"
  echo "# >>> orlop: install.sh keeps this, up to the closing mark"
  if ! plain "$file" | grep -q .; then echo "version = $format"; fi
  handler
  # 1.x forgets runc, its default, as soon as another runtime is said.
  if [ "$major" = 1 ] && ! plain "$file" | grep -q '^[^#]*containerd\.runtimes\.'; then table runc; fi
  echo "# <<< orlop"
}

# Which containerd there is, the file that it is configured by, and the one in which our handler will be.
find_containerd() {
  for flavour in k3s rke2 containerd; do
    file=$root/var/lib/rancher/$flavour/agent/etc/containerd/config.toml major=2 units="k3s k3s-agent rke2-server rke2-agent"
    if [ -f "$file" ]; then break; fi
  done
  if [ "$flavour" = containerd ]; then
    file=$root/etc/containerd/config.toml units=containerd
    major=$(containerd --version 2>/dev/null | sed 's/^[^ ]* [^ ]* v*\([0-9]*\).*/\1/')
  fi
  format=$(head_of "$file" | sed -n 's/^[[:space:]]*version[[:space:]]*=[[:space:]]*\([0-9]*\).*/\1/p')
  if [ -z "$format" ]; then if plain "$file" | grep -q .; then format=1; elif [ "$major" = 1 ]; then format=2; else format=3; fi; fi
  dropin=''
  for name in conf.d config-v3.toml.d config.toml.d; do
    # 1.x replaces whole tables by what it imports, so nothing is imported there.
    if [ "$major" != 1 ] && head_of "$file" | grep -q "/$name/\*\.toml" && ! grep -q '^# >>> orlop' "$file"; then
      dropin=${file%/*}/$name/orlop.toml
      # One of a higher version than what imports it would not be loaded.
      if [ "$format" -gt 3 ]; then format=3; fi
    fi
  done
}
# Ends with an error, and nothing done, where containerd would not take the handler.
try_containerd() {
  if [ -z "$major" ]; then die "there is no containerd here, nor a k3s or RKE2 that has run once: install one first"; fi
  if [ -n "$dropin$dry" ] || has_handler; then return; fi
  if [ "$flavour" != containerd ]; then die "this $flavour imports no drop-ins, as its releases since March 2026 do; docs/kubernetes.md has a way"; fi
  must mkdir -p "${file%/*}"
  with_block 2>/dev/null >"$file.orlop-try" || die "cannot write $file.orlop-try: is the disk full, or read-only?"
  said=$(containerd --config "$file.orlop-try" config dump 2>&1) && taken=yes || taken=''
  rm -f "$file.orlop-try"
  [ -n "$taken" ] || die "$file is left as it is, for with the handler in it containerd says: $(printf '%s' "$said" | tail -n 1)"
}
# Whether somebody else has written it.
has_handler() { plain "$file" | grep -q '^[^#]*runtimes\.orlop\]'; }
configure() {
  if has_handler; then
    say "$file has a handler orlop that is not from here; it is left as it is"
  elif [ -n "$dropin" ]; then
    { echo "version = $format"; handler; } | put "$dropin"
  else
    if [ -f "$file" ] && [ ! -e "$file.before-orlop" ] && ! grep -q '^# >>> orlop' "$file"; then must cp -p "$file" "$file.orlop-new"; must mv "$file.orlop-new" "$file.before-orlop"; fi
    with_block | put "$file"
  fi
}
deconfigure() {
  for directory in "$root"/var/lib/rancher/*/agent/etc/containerd/config*.toml.d "$root/etc/containerd/conf.d"; do
    if [ -f "$directory/orlop.toml" ]; then restart_later; fi
    must rm -f "$directory/orlop.toml"
    if [ -z "$dry" ]; then rmdir "$directory" 2>/dev/null || :; fi
  done
  own=$root/etc/containerd/config.toml
  if [ -e "$own.before-orlop" ] || plain "$own" | grep -q .; then
    plain "$own" | put "$own"
  elif [ -f "$own" ]; then
    restart_later
    must rm -f "$own"
  fi
  must rm -f "$own.before-orlop"
  if [ -z "$dry" ]; then rmdir "${own%/*}" 2>/dev/null || :; fi
}
# A run that ends before it has restarted containerd leaves that to the next one.
restart_later() { must mkdir -p "$base"; must touch "$base/.restart"; }
restart_containerd() {
  if [ ! -e "$base/.restart" ]; then return; fi
  for unit in $units; do
    if [ -n "$restart" ] && [ -d "$root/run/systemd/system" ] && systemctl is-active --quiet "$unit"; then
      say "restarting $unit"
      must systemctl restart "$unit"
      must rm -f "$base/.restart"
      return
    fi
  done
  say "restart $flavour for its new configuration to hold"
}

install() {
  for name in VERSION SHA256SUMS $files; do
    [ -s "$here/$name" ] || die "this is not a whole release, $here/$name is missing: unpack it again"
  done
  (cd "$here" && sha256sum -c SHA256SUMS) >/dev/null 2>&1 || die "this release is damaged, its files are not as $here/SHA256SUMS says: unpack it again"
  version=$(cat "$here/VERSION")
  [ "$(uname -m)" = x86_64 ] || die "this is a machine of $(uname -m); Orlop is for x86_64 only"
  (: <"$root/dev/kvm") 2>/dev/null || die "there is no KVM, $root/dev/kvm cannot be opened: turn virtualisation on in the firmware, or modprobe kvm_intel or kvm_amd"
  for program in $programs; do
    if [ -e "$links/$program" ] && [ ! -L "$links/$program" ]; then die "$links/$program is not from here: remove it first"; fi
  done
  if [ -d "$base/$version" ] && ! cmp -s "$here/SHA256SUMS" "$base/$version/SHA256SUMS"; then
    die "another $version is installed: take it away first, with $base/$version/install.sh --uninstall"
  fi
  find_containerd
  try_containerd
  if [ ! -d "$base/$version" ]; then
    must mkdir -p "$new/bin" "$new/share"
    for name in VERSION SHA256SUMS $files; do must cp "$here/$name" "$new/$name"; done
    must chmod 755 "$new/install.sh" "$new"/bin/*
    for program in orlop orlop-node virtiofsd; do must "$new/bin/$program" --version; done
    must sync
    must mv "$new" "$base/$version"
  fi
  link "$version" "$base/current"
  must mkdir -p "$links"
  for program in $programs; do link "/opt/orlop/current/bin/$program" "$links/$program"; done
  if [ ! -e "$config" ]; then put "$config" <"$here/share/config.toml"; fi
  configure
  restart_containerd
  for old in "$base"/*/; do
    old=${old%/}
    if [ -L "$old" ] || [ ! -d "$old" ] || [ "$old" = "$base/$version" ]; then continue; fi
    users=$(users_of "$old")
    if [ -n "$users" ]; then say "$old stays for its $users"; continue; fi
    must mv "$old" "$base/.old.$$"
    must rm -rf "$base/.old.$$"
  done
  if head_of "$file" | grep -q '^disabled_plugins.*cri"'; then say "note that $file disables containerd's CRI, without which there are no pods"; fi
  if [ -z "$dry" ]; then say "Orlop $version is installed"; fi
}

uninstall() {
  refuse_if_used
  find_containerd
  deconfigure
  restart_containerd
  # One may have begun meanwhile.
  refuse_if_used
  for program in $programs; do
    case $(readlink "$links/$program") in /opt/orlop/*) must rm -f "$links/$program" ;; esac
  done
  must rm -f "$config"
  must rm -rf "$root/var/lib/orlop" "$base"
  if [ -z "$dry" ]; then for name in etc/orlop run/orlop/vm run/orlop; do rmdir "$root/$name" 2>/dev/null || :; done; fi
  if [ -z "$dry" ]; then say "Orlop is not installed any more"; fi
}
refuse_if_used() {
  users=$(users_of "$base")
  [ -z "$users" ] || die "Orlop stays for its $users; end them first, as kubectl drain does"
}

# Removes what this run, or one that was killed, has not brought to its place.
clear_away() {
  rm -rf "$base"/.new.* "$base"/.old.* "$base"/*.orlop-new "$links"/*.orlop-new "$root"/etc/orlop/*.orlop-new
  rm -f "$root"/etc/containerd/*.orlop-* "$root"/etc/containerd/conf.d/*.orlop-new "$root"/var/lib/rancher/*/agent/etc/containerd/*/*.orlop-new
  rmdir "$base" "$root/etc/orlop" "$root/etc/containerd" 2>/dev/null || :
}

root='' dry='' restart=yes verb=install
while [ $# -gt 0 ]; do
  case $1 in
    --uninstall) verb=uninstall ;;
    --no-restart) restart='' ;;
    --dry-run) dry=yes ;;
    --root) [ $# -gt 1 ] || die "--root needs a directory"; root=${2%/}; shift ;;
    --help | -h) usage; exit ;;
    *) die "there is no option $1; --help lists them" ;;
  esac
  shift
done
here=$(cd "$(dirname "$0")" && pwd -P)
base=$root/opt/orlop config=$root/etc/orlop/config.toml links=$root/usr/local/bin new=$root/opt/orlop/.new.$$
programs="orlop containerd-shim-orlop-v2"
files="install.sh bin/orlop bin/orlop-node bin/containerd-shim-orlop-v2 bin/virtiofsd share/vmlinux share/agent.erofs share/initramfs.cpio share/initramfs-debian.cpio share/config.toml"
if [ -z "$dry" ]; then
  [ "$(id -u)" = 0 ] || die "this is for root: try sudo $0"
  must mkdir -p "$root/opt"
  # The lock is on a directory that is there in any case, so that it leaves no file, and goes with this process.
  exec 9<"$root/opt"
  flock -n 9 || die "another install.sh is at work: try again when it is done"
  trap clear_away EXIT
  trap 'exit 1' HUP INT TERM
  clear_away
fi
$verb
