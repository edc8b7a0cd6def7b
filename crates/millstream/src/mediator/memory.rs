//! How much memory there is, and how much of it is used, as Linux tells it.

use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// How many bytes of memory this process uses, as Linux tells it: the larger of its resident set and, if its control group or one
/// around it has a limit, that group's working set: what is charged to it without the file cache that Linux gives back first
/// (`inactive_file`), as the kubelet counts it. `None` elsewhere. A probe for [`Memory::probe`](super::Memory::probe); it reads two
/// small files, one for each group around the process, and two more where there is a limit.
pub fn process_memory() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    // Pages of 4 KiB wherever Linux does not say otherwise; where they are larger this is too low, never too high.
    let resident = statm.split_whitespace().nth(1)?.parse::<u64>().ok()? * 4096;
    // A group without a limit is the whole machine's, which says nothing of this process.
    let group = limited(Path::new(ROOT), &own_groups()).and_then(|(_, group)| group.working_set());
    Some(resident.max(group.unwrap_or(0)))
}

/// How many bytes of memory this process may have: the least limit of its control group and those around it (of a service, a
/// container, a slice); `None` if none is limited, or not known.
pub fn memory_limit() -> Option<u64> {
    limited(Path::new(ROOT), &own_groups()).map(|(limit, _)| limit)
}

fn own_groups() -> String {
    std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default()
}

/// A control group that has memory, and what its files are called.
struct Group {
    place: PathBuf,
    files: &'static Files,
}

struct Files {
    limit: &'static str,
    charged: &'static str,
    cache: &'static str,
}

const SECOND: Files = Files { limit: "memory.max", charged: "memory.current", cache: "inactive_file " };
const FIRST: Files =
    Files { limit: "memory.limit_in_bytes", charged: "memory.usage_in_bytes", cache: "total_inactive_file " };

impl Group {
    /// The first version says "no limit" by a number near 2^63.
    fn limit(&self) -> Option<u64> {
        number(&self.place.join(self.files.limit)).filter(|limit| *limit < 1 << 60)
    }

    fn working_set(&self) -> Option<u64> {
        let charged = number(&self.place.join(self.files.charged))?;
        let stat = std::fs::read_to_string(self.place.join("memory.stat")).unwrap_or_default();
        let cache = stat.lines().find_map(|line| line.strip_prefix(self.files.cache)?.trim().parse().ok());
        Some(charged.saturating_sub(cache.unwrap_or(0)))
    }
}

/// The group with the least limit, of those that `/proc/self/cgroup` names and all around them.
fn limited(root: &Path, own: &str) -> Option<(u64, Group)> {
    // `0::/system.slice/shop.service` is of the second version, `4:memory:/docker/…` of the first.
    let version = |line: &str| {
        let mut parts = line.splitn(3, ':').skip(1);
        match (parts.next()?, parts.next()?) {
            ("", path) => Some((root.to_owned(), path.to_owned(), &SECOND)),
            (names, path) if names.split(',').any(|name| name == "memory") => {
                Some((root.join("memory"), path.to_owned(), &FIRST))
            }
            _ => None,
        }
    };
    // The mount's root is looked at in any case: inside of a container the paths may be those outside of it.
    let mounts = [(root.to_owned(), String::new(), &SECOND), (root.join("memory"), String::new(), &FIRST)];
    let groups = own.lines().filter_map(version).chain(mounts).flat_map(|(mount, path, files)| {
        let path = path.trim_matches('/').to_owned();
        let inside = if path.split('/').any(|part| part == "..") { mount.clone() } else { mount.join(path) };
        let around: Vec<_> = inside.ancestors().take_while(|place| place.starts_with(&mount)).collect();
        around.into_iter().map(|place| Group { place: place.to_owned(), files }).collect::<Vec<_>>()
    });
    groups.filter_map(|group| Some((group.limit()?, group))).min_by_key(|(limit, _)| *limit)
}

fn number(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new(files: &[(&str, &str)]) -> Self {
            let root = tempfile::tempdir().unwrap();
            std::fs::create_dir(root.path().join("mount")).unwrap();
            for (file, text) in files {
                let file = root.path().join("mount").join(file);
                std::fs::create_dir_all(file.parent().unwrap()).unwrap();
                std::fs::write(file, text).unwrap();
            }
            Tree(root)
        }

        /// The limit that holds for a process in these groups, and the working set of the group that has it.
        fn of(&self, own: &str) -> Option<(u64, Option<u64>)> {
            limited(&self.0.path().join("mount"), own).map(|(limit, group)| (limit, group.working_set()))
        }
    }

    #[test]
    fn a_groups_file_cache_is_not_what_its_processes_hold() {
        let tree = Tree::new(&[
            ("memory/memory.limit_in_bytes", "5000\n"),
            ("memory/memory.usage_in_bytes", "900\n"),
            ("memory/memory.stat", "inactive_file 1\ntotal_inactive_file 500\n"),
        ]);
        assert_eq!(tree.of("4:memory:/\n"), Some((5000, Some(400))), "the first version, with its children");
        let tree = Tree::new(&[
            ("memory.max", "5000\n"),
            ("memory.current", "1000\n"),
            ("memory.stat", "anon 300\nfile 700\nactive_file 100\ninactive_file 600\n"),
        ]);
        assert_eq!(tree.of("0::/\n"), Some((5000, Some(400))));
    }

    #[test]
    fn a_service_has_the_least_limit_of_the_groups_it_is_in() {
        let tree = Tree::new(&[
            ("system.slice/memory.max", "4000\n"),
            ("system.slice/memory.current", "3000\n"),
            ("system.slice/shop.service/memory.max", "max\n"),
            ("system.slice/shop.service/memory.current", "700\n"),
            ("system.slice/mail.service/memory.max", "2000\n"),
            ("system.slice/mail.service/memory.current", "500\n"),
        ]);
        assert_eq!(tree.of("0::/system.slice/mail.service\n"), Some((2000, Some(500))));
        assert_eq!(tree.of("0::/system.slice/shop.service\n"), Some((4000, Some(3000))), "that of its slice");
        assert_eq!(tree.of("0::/user.slice\n"), None);
        let tree = Tree::new(&[
            ("memory/docker/9f/memory.limit_in_bytes", "2000\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        assert_eq!(tree.of("7:cpu:/a\n4:hugetlb,memory:/docker/9f\n0::/\n"), Some((2000, None)));
        assert_eq!(tree.of("4:memory:/\n"), None, "a number near 2^63 is no limit");
    }

    #[test]
    fn a_container_that_is_told_paths_from_outside_has_the_limit_of_its_mount() {
        let tree = Tree::new(&[("memory.max", "3000\n"), ("../memory.max", "1\n")]);
        for own in ["0::/docker/9f\n", "0::/../../other\n", ""] {
            assert_eq!(tree.of(own), Some((3000, None)), "{own}");
        }
    }
}
