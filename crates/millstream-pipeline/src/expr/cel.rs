//! CEL expressions that say yes or no to an item.

use super::blame::blame;
use super::view::{Item, Shown};
use super::{CompileError, ExpressionError};
use crate::value::Value;
use cel::common::ast::{Expr, LiteralValue, operators};
use cel::common::types::CelBool;
use cel::{Context, Env, ExecutionError, Program};

/// A compiled CEL condition over `item`.
///
/// The item is not converted: the expression reads, out of it, the fields it names.
pub struct Condition {
    program: Program,
    context: Context<'static, 'static>,
    shown: Shown,
}

impl Condition {
    /// Compiles a CEL expression.
    ///
    /// # Errors
    ///
    /// What does not parse, a name other than `item`, an unknown function, or a form that cannot give true
    /// or false.
    pub fn compile(source: &str) -> Result<Self, CompileError> {
        let env = std::sync::Arc::new(Env::stdlib());
        let program = env.compile(source).map_err(|errors| match errors.errors.first() {
            Some(error) => CompileError {
                line: error.pos.0.max(1) as usize,
                column: error.pos.1.max(1) as usize,
                message: first_line(&error.msg),
            },
            None => whole("does not parse".to_owned()),
        })?;
        if !may_be_bool(&program.expression().expr) {
            return Err(whole("cannot give true or false".to_owned()));
        }
        let condition = Condition { program, context: Context::with_env(env), shown: Shown::to(source) };
        for function in condition.program.references().functions() {
            if !condition.knows(function) {
                return Err(unknown(source, function));
            }
        }
        // A name that no item could supply shows at once, on an item without fields.
        match condition.evaluate(&Value::obj(Default::default())) {
            Err(ExecutionError::UndeclaredReference(name)) => Err(unknown(source, &name)),
            _ => Ok(condition),
        }
    }

    /// Whether there is a function of this name. CEL finds that out when it is called, and only there; so it is
    /// called, once as a function and once as a method.
    fn knows(&self, function: &str) -> bool {
        let word = function.chars().all(|c| c.is_ascii_alphanumeric() || "_.".contains(c));
        // Operators are functions with names such as `_>_`, and `@in`.
        if !word || function.starts_with('_') || function.starts_with(|c: char| c.is_ascii_digit()) {
            return true;
        }
        [format!("{function}()"), format!("''.{function}()")].iter().any(|call| {
            match Program::compile(call) {
                Ok(program) => {
                    !matches!(program.execute(&self.context), Err(ExecutionError::UndeclaredReference(_)))
                }
                Err(_) => true,
            }
        })
    }

    /// Whether the expression is true for `value`.
    ///
    /// # Errors
    ///
    /// A missing field (`has(item.FIELD)` asks for it), a comparison of different types, or a result that is
    /// neither true nor false.
    pub fn holds(&self, value: &Value) -> Result<bool, ExpressionError> {
        self.evaluate(value).map_err(|error| {
            // It is evaluated again, part by part.
            let item = Item(value, self.shown);
            let mut scope = self.context.new_inner_scope();
            scope.set_variable_resolver(&item);
            ExpressionError::bounded(blame(self.program.expression(), &scope, &error))
        })
    }

    /// The answer, if the expression reads nothing of the item and so always gives the same.
    pub(crate) fn constant(&self) -> Option<bool> {
        let reads = self.program.references().has_variable("item");
        if reads { None } else { self.holds(&Value::Null).ok() }
    }

    fn evaluate(&self, value: &Value) -> Result<bool, ExecutionError> {
        let item = Item(value, self.shown);
        let mut scope = self.context.new_inner_scope();
        scope.set_variable_resolver(&item);
        let result = cel::Value::resolve_val(self.program.expression(), &scope)?;
        match result.downcast_ref::<CelBool>() {
            Some(answer) => Ok(*answer.inner()),
            None => Err(ExecutionError::UnexpectedType {
                got: result.get_type().name().to_owned(),
                want: "bool".to_owned(),
            }),
        }
    }
}

impl std::fmt::Debug for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Condition")
    }
}

fn whole(message: String) -> CompileError {
    CompileError { line: 1, column: 1, message }
}

fn unknown(source: &str, name: &str) -> CompileError {
    let (line, column) = super::position(source, source.find(name).unwrap_or(0));
    CompileError {
        line,
        column,
        message: format!("unknown name `{name}`; the item's fields are `item.FIELD`"),
    }
}

fn first_line(message: &str) -> String {
    // Inside of what the parser shows of its own insides.
    if message.contains("Recursion limit") {
        return "nests more deeply than an expression may; take a part of it out".to_owned();
    }
    let line = message.lines().next().unwrap_or("does not parse");
    // The parser lists every token that could follow, which helps nobody.
    let line = line.split(" expecting ").next().unwrap_or(line);
    line.replace("Syntax error: ", "").replace("'<EOF>'", "the end")
}

/// Whether the outermost form can be a bool at all; `item.x + 1` cannot.
fn may_be_bool(expression: &Expr) -> bool {
    match expression {
        Expr::Literal(literal) => matches!(literal, LiteralValue::Boolean(_)),
        Expr::List(_) | Expr::Map(_) | Expr::Struct(_) => false,
        Expr::Call(call) => ![
            operators::ADD,
            operators::SUBSTRACT,
            operators::MULTIPLY,
            operators::DIVIDE,
            operators::MODULO,
            operators::NEGATE,
            "size",
            "string",
            "int",
            "uint",
            "double",
        ]
        .contains(&call.func_name.as_str()),
        _ => true,
    }
}
