# What jq has and jaq has not, as far as it is of use for one item.
def toarray: if isarray then . else [.] end;
def trimstr($x): ltrimstr($x) | rtrimstr($x);
def leaf_paths: paths(isnumber or isstring or isboolean or . == null);
def IN(values): . as $one | any(values; . == $one);
def IN(ones; values): any(ones; IN(values));
def INDEX(rows; key): reduce rows as $row ({}; . + {($row | key | tostring): $row});
def INDEX(key): INDEX(.[]; key);
def fields(of): if isarray then map(if isarray or isobject then error("a row has no place for \(tojson)") elif . == null then "" else of end) else error("\(tojson) is no row") end;
def @csv: fields(if isstring then "\"" + (split("\"") | join("\"\"")) + "\"" else tostring end) | join(",");
def @tsv: fields(tostring | split("\\") | join("\\\\") | split("\t") | join("\\t") | split("\n") | join("\\n") | split("\r") | join("\\r")) | join("\t");

# jaq's, that may go on for ever, with their steps counted.
def __millstream_range(from; to; by): range(from; to; by);
def range(from; to; by): __millstream_range(from; to; by) | __millstream_step as $__millstream | .;
def range(from; to): range(from; to; 1);
def range(to): range(0; to);
def repeat(f): def rec: __millstream_step as $__millstream | f, rec; rec;
def recurse(f): def rec: __millstream_step as $__millstream | ., (f | rec); rec;
def recurse(f; cond): recurse(f | select(cond));
def while(cond; update): def rec: __millstream_step as $__millstream | if cond then ., (update | rec) else empty end; rec;
def until(cond; update): def rec: __millstream_step as $__millstream | if cond then . else update | rec end; rec;
def __millstream_combinations: combinations;
def combinations: __millstream_combinations | __millstream_step as $__millstream | .;
def combinations($n): [limit($n; repeat(.))] | combinations;
