from programs.process.program import program

program()
