//! The cases of `goals.md`, section *engine*.

mod accounts;
mod allocations;
mod batching;
mod concurrent;
mod fanning;
mod fused;
mod guide;
mod hops;
mod latency;
mod multicore;
mod run;
mod streamz;
mod windows;

use crate::case::Case;

pub(crate) fn cases() -> Vec<Case> {
    let groups = [
        fused::cases(),
        hops::cases(),
        latency::cases(),
        concurrent::cases(),
        multicore::cases(),
        batching::cases(),
        fanning::cases(),
        windows::cases(),
        guide::cases(),
        accounts::cases(),
        allocations::cases(),
    ];
    groups.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use crate::case::Case;

    fn check(cases: &[Case]) {
        let names: HashSet<_> = cases.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), cases.len(), "a case's name is how the runner finds it");
        for case in cases {
            let contestants: HashSet<_> = case.contestants.iter().map(|found| found.name).collect();
            assert_eq!(contestants.len(), case.contestants.len(), "{}: a name is used twice", case.name);
            assert!(!case.goals.is_empty(), "{}: measured for nothing", case.name);
            for goal in &case.goals {
                if let Some(name) = goal.bound.other() {
                    assert!(
                        contestants.contains(name),
                        "{}: a goal names `{name}`, which does not run",
                        case.name
                    );
                }
            }
        }
    }

    #[test]
    fn every_goal_is_about_contestants_that_run() {
        check(&super::cases());
        check(&crate::log::cases());
        check(&crate::mediator::cases());
        check(&crate::resilience::cases());
    }
}
