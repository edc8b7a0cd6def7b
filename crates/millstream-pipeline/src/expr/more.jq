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
