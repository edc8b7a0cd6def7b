//! What Millstream shows of a run: metrics exposition, health, the status page.
