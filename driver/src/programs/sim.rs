//! Programs of a simulated host: each is a function over whatever state the test keeps, usually a simulated kernel.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::{Exit, Finished, Invocation, Program, ProgramError, Programs, Running};

/// What a simulated program answers.
pub type Answer = Result<Finished, ProgramError>;

type Handler = Arc<dyn Fn(Invocation) -> Running<'static> + Send + Sync>;

/// A host whose programs are functions. One without a function is not installed.
#[derive(Clone, Default)]
pub struct SimPrograms {
    handlers: Arc<Mutex<HashMap<Program, Handler>>>,
}

impl SimPrograms {
    /// A host without any program.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Installs a program that answers at once.
    pub fn install(&self, program: Program, f: impl Fn(&Invocation) -> Answer + Send + Sync + 'static) {
        self.install_async(program, move |invocation| {
            let answer = f(&invocation);
            async move { answer }
        });
    }

    /// Installs a program that may take its time. It is given up, like a real one, when its time limit passes.
    pub fn install_async<F, R>(&self, program: Program, f: F)
    where
        F: Fn(Invocation) -> R + Send + Sync + 'static,
        R: Future<Output = Answer> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |invocation| Box::pin(f(invocation)));
        self.handlers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(program, handler);
    }

    /// Takes a program away.
    pub fn uninstall(&self, program: Program) {
        self.handlers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&program);
    }
}

impl Programs for SimPrograms {
    fn run(&self, invocation: Invocation) -> Running<'_> {
        let program = invocation.program;
        let limit = invocation.timeout;
        let handler = self
            .handlers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&program)
            .cloned();
        Box::pin(async move {
            let handler = handler.ok_or(ProgramError::Missing { program })?;
            tokio::time::timeout(limit, handler(invocation))
                .await
                .unwrap_or(Err(ProgramError::Timeout {
                    program,
                    timeout: limit,
                    said: String::new(),
                }))
        })
    }
}

/// An answer with this exit code, `text` on standard output when it is 0, otherwise on standard error.
pub fn exits(program: Program, code: i32, text: &str) -> Answer {
    let (stdout, stderr) = if code == 0 { (text, "") } else { ("", text) };
    Ok(Finished {
        program,
        exit: Exit::Code(code),
        stdout: stdout.to_owned(),
        stderr: stderr.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn simulated_programs_answer_are_missing_and_time_out() {
        let sim = SimPrograms::new();
        let ask = Invocation::new(Program::Blkid, ["x"], Duration::from_secs(5));
        assert!(matches!(
            sim.run(ask.clone()).await,
            Err(ProgramError::Missing { .. })
        ));
        sim.install(Program::Blkid, |i| exits(i.program, 2, &i.args.join(" ")));
        assert_eq!(sim.run(ask.clone()).await.expect("answers").stderr, "x");
        sim.install_async(Program::Blkid, |_| std::future::pending());
        assert!(matches!(sim.run(ask).await, Err(ProgramError::Timeout { .. })));
    }
}
