from programs.docker.program import program

program()
